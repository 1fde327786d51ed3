"""Commands on weights and trained models: import, measure, compare, chat, serve."""
