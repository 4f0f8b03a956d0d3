"""Experiments: calls to one model are split over variants, and what comes of each is compared."""
