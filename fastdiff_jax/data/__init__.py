"""Data sets, one file each: build(config) -> Data."""
