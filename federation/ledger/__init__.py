"""The privacy budget of a protected population: records, filter, ledger, receipts, keys."""
