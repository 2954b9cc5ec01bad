// Reads the tables of epochs, so that every value of a curve can be had: by pointer, finger or arrow keys.
"use strict";
const slider = document.getElementById("epoch");
if (slider) {
  const tables = [...document.querySelectorAll("table.epochs")];
  const plots = [...document.querySelectorAll("figure.plot")];
  const columnOf = (table, name) =>
    [...table.tHead.rows[0].cells].findIndex((cell) => cell.dataset.column === name);

  const valueIn = (table, name, epoch) => {
    const row = table.tBodies[0].rows[epoch - 1];
    const column = columnOf(table, name);
    return row && column >= 0 ? row.cells[column].textContent : null;
  };

  const readout = (name, epoch) => {
    const names = tables.length > 1 ? [name] :
      { accuracy: ["accuracy", "holdout_accuracy"], test_loss: ["test_loss", "train_loss"] }[name] || [name];
    const values = tables.flatMap((table) => names.map((column) => {
      const value = valueIn(table, column, epoch);
      if (!value) return [];
      if (tables.length > 1) return [`${table.dataset.run}: ${value}`];
      return [names.length > 1 ? `${{ test_loss: "test", train_loss: "training", accuracy: "test",
        holdout_accuracy: "hold-out" }[column]} ${value}` : value];
    }).flat());
    return values.join("   ");
  };

  const show = (epoch) => {
    document.querySelector(".slider output").textContent = epoch;
    for (const plot of plots) {
      const first = Number(plot.dataset.first);
      const last = Math.max(Number(plot.dataset.last), first + 1);
      const at = `${100 * (epoch - first) / (last - first)}%`;
      const cursor = plot.querySelector(".cursor");
      cursor.setAttribute("x1", at);
      cursor.setAttribute("x2", at);
      cursor.setAttribute("visibility", "visible");
      plot.querySelector(".readout").textContent = `epoch ${epoch}:  ${readout(plot.dataset.column, epoch)}`;
    }
  };

  for (const plot of plots) {
    const box = plot.querySelector(".box");
    box.addEventListener("pointermove", (event) => {
      const area = box.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - area.left) / area.width));
      const first = Number(plot.dataset.first);
      slider.value = Math.round(first + share * (Number(plot.dataset.last) - first));
      show(Number(slider.value));
    });
  }
  slider.addEventListener("input", () => show(Number(slider.value)));
  slider.closest(".slider").hidden = false;
  show(Number(slider.value));
}
