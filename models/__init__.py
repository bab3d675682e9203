"""Networks, losses, training and metrics: only tensors, no domain names, files of the product or services."""
