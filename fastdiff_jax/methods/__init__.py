"""Training algorithms, one file each: build(config, parts) -> Method."""
