"""The page that shows a trained model: one HTML file without network access, in which the decoder runs."""

from .page import write_page as write_page
