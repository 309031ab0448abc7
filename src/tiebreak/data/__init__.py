"""In and out of the house: published schemas, tables, TRL shapes, splits, the small world."""
