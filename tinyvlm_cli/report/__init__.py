"""Tables, charts and the HTML page from the text files of a results folder and the published scores."""
