"""The differential evolution around the operators: adaptation, ask/tell, runs, journals."""
