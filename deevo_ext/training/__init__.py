"""Making a population: fine-tunings of one network with distinct hyper-parameters."""
