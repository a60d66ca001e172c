"""The HTTP server of `ragvl serve`; the library never imports it."""
