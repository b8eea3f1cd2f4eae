"""Search what to compress how much: the best network that meets a budget, and the Pareto front."""

from __future__ import annotations

from tvm_compress.search.budget import Budget
from tvm_compress.search.result import SearchResult, Trial
from tvm_compress.search.runner import search

__all__ = ["Budget", "SearchResult", "Trial", "search"]
