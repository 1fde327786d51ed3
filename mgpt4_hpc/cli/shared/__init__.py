"""Options and tables that several commands share. A command itself stands in its own folder."""
