"""Models and rules say which answer is better, in both orders, into the ledger."""
