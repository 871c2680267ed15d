"""Tables, charts and the HTML page from the text files of a results folder and the published scores.

Everything comes from one data frame of scores. No model runs here, and no file in a results folder is executed."""
