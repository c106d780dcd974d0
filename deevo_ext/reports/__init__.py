"""What a finished run leaves for its readers: model card, HTML report, pictures, TensorBoard."""
