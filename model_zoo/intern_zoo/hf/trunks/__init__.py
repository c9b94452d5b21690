"""Image models as an exported folder makes them: one module for each library that they come from."""
