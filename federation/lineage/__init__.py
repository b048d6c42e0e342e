"""Which data sets made a model, and which models used a data set: from run folders and ledgers."""
