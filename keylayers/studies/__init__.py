"""Arms x budgets x seeds x data, with controls, paired statistics, power and a ledger of claims."""
