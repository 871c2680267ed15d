// Starts the page. Tables work before the data is decompressed.

startTheme();
startTables();
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
readData().then((data) => {
  const looks = new Looks(data);
  startCharts(data, looks);
  startAnswers(data);
  startConfigurations(data);
  startProvenance(data);
  document.documentElement.dataset.state = "ready";
});
