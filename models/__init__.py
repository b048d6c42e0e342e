"""Networks: what a model is made of, and its weights as named arrays. Imports no other room."""
