"""What the ``mgpt4 data`` commands do: download, convert, pack, prepare, measure.

Training does not need it: it reads shards through ``index`` and ``reading``.
"""
