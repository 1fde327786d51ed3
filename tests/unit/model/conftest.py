"""The reference folders, for every test of the model."""

from tests.support.reference import bundle, reference, vicuna  # noqa: F401
