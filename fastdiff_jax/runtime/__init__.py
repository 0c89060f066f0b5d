"""Everything that touches devices, files, time and the command line."""
