"""Files of the Hugging Face hub, or behind plain URLs, into a folder. Knows no file's meaning."""
