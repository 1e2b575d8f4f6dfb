"""Several models as one distribution over the catalog, their weights fitted by maximum likelihood."""
