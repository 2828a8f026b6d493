"""A trained network in use: logits, probabilities, saliency maps, tables of predictions."""
