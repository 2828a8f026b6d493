"""The network: DenseNet as the paper draws it, the frontier, initial values, preprocessing."""
