"""The private names of prefactor-core 0.5.3 that the vendor's adapters use, as aliases.

The client and the run inherit them from the mixins of ``adapters``; each alias calls a public name.
Nothing else uses them: without this room, those two lose a base class each, and the package its
``warn_missing_adaptor_config``. The extra ``adapters`` has what they need of the vendor's client.
Read ``adapters`` first.
"""
