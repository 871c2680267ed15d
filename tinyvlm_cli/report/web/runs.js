// Differences between the configurations of two runs, and where the runs and tables come from.

function startConfigurations(data) {
  const [a, b, same] = ["config-a", "config-b", "same"].map(byId);
  if (!a) return;
  const runs = Object.keys(data.configurations);
  options(a, runs.map((run) => [run, run]), runs[0]);
  options(b, runs.map((run) => [run, run]), runs[1] ?? runs[0]);
  const text = (place) => (place < 0 ? "-" : data.values[place]);
  const update = () => {
    const [ours, theirs] = [data.configurations[a.value], data.configurations[b.value]];
    const places = data.settings.map((name, place) => [name, place]).sort(([one], [other]) => (one < other ? -1 : 1));
    byId("settings").replaceChildren(...places
      .filter(([, place]) => (ours[place] >= 0 || theirs[place] >= 0) && (same.checked || ours[place] !== theirs[place]))
      .map(([name, place]) => row([name, "head"], [text(ours[place]), "text"], [text(theirs[place]), "text"])));
  };
  for (const input of [a, b, same]) input.addEventListener("change", update);
  update();
}

function startProvenance(data) {
  const table = byId("of-table");
  if (!table) return;
  const { report, runs, commands } = data.provenance;
  const packages = Object.entries(report.packages).filter(([, version]) => version).map(([name, version]) => `${name} ${version}`);
  byId("versions").textContent = `This page: ${report.time}, commit ${report.commit ?? "unknown (installed package)"}, Python ${report.python}, ${packages.join(", ")}.`;
  const update = () => { byId("commands").textContent = (commands[table.value] ?? []).join("\n"); };
  table.addEventListener("change", update);
  update();
  const hash = (text) => element("span", { class: "hash", title: text }, text.slice(0, 12));
  byId("origins").replaceChildren(...runs.map((one) => {
    const stages = one.stages.map((stage) => element("div", {}, `${stage.name}: ${stage.folder}`,
      ...(stage.data ? [", data ", hash(stage.data)] : []),
      ...Object.entries(stage.weights).flatMap(([file, digest]) => [`, ${file} `, hash(digest)])));
    const versions = one.made.packages ?? "";
    return row([one.run, "head"], [element("span", { title: versions }, one.made.time ?? "-"), "head"],
      [one.made.commit ? hash(one.made.commit) : "-", "head"], [element("div", {}, ...stages), "head"]);
  }));
}
