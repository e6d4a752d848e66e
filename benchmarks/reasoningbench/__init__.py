"""What a reasoning bank costs and finds: timings, planted patterns, a day of quotes, pictures and the page."""
