"""One async client for servers that speak as OpenAI does: vLLM, SGLang, llama.cpp, OpenAI itself and their like."""

from tiebreak.endpoint.client import Endpoint, Reply, Token, Unanswered, finish, together
from tiebreak.endpoint.cost import Budget, BudgetReached, Paid

__all__ = ["Budget", "BudgetReached", "Endpoint", "Paid", "Reply", "Token", "Unanswered", "finish", "together"]
