"""The run's picture and the page that holds it."""
