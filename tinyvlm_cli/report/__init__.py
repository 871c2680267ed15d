"""Tables, charts and the HTML page from the text files of a results folder and the published scores.

Everything is made from one data frame of scores. No model runs here; nothing in a results folder is executed."""
