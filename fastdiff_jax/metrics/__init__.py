"""Sample-set statistics on images and features."""
