"""One weight file, whatever is in it: header, directory, hashes, one safe pass over its bytes.

What the tensors mean is in ``conversion`` and ``llm_files``.
"""
