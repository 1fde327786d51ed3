"""Bytes of tar files: headers, checksums, walking over members. Knows no samples."""
