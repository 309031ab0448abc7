"""Policy-gradient losses as switches: advantage x ratio x clip x aggregation x KL, and methods as rows."""
