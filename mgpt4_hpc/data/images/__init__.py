"""From an image's bytes to pixels. Knows no shards and no samples."""
