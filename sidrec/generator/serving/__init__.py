"""HTTP requests -> result lines, and a page that shows them."""
