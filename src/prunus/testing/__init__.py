"""Checks for methods, posteriors and rules of one's own: each raises AssertionError with what is wrong."""

from prunus.testing.coupling import check_coupling, check_rule
from prunus.testing.methods import check_method
from prunus.testing.posteriors import check_posterior

__all__ = ["check_coupling", "check_method", "check_posterior", "check_rule"]
