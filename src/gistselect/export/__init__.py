"""Selected rows in the formats of the tools that people train with, each with a ready configuration file."""
