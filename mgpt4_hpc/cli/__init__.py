"""The command line: parse, call one function, echo.

A command stands in the folder of what its user works on: ``runs``, ``data``, ``model``, ``site``.
What it does stands below, in ``launch``, ``train``, ``data`` and the others.
"""
