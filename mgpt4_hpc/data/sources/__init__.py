"""What the ``mgpt4 data`` commands do: download, convert, pack, prepare, measure."""
