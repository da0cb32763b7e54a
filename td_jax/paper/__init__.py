"""The paper's bookkeeping: tables, tuning, checks, Figure 3."""
