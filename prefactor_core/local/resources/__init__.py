"""The objects that an account has beside its agents and runs: environments, deployments, versions,
API tokens. A module for each; ``resource`` is what they share."""
