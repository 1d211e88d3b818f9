"""The site of runs that `mixerzoo publish` keeps: what it holds, its pages, and how it is changed without breaking."""
