"""Random requests by the OpenAPI document of a served local Prefactor."""
