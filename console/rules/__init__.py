"""The rules file as the console works with it: read, checked, tried, written, and every version of it kept."""
