"""Answers given again: to a request that is repeated under its key, and to one that another has asked before."""
