"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const places = [...document.querySelectorAll(".figure")];
  const drawn = new Set();

  // Colours that a figure gives by the name of a variable of the page's styles, as they are now.
  const coloured = (value, name = "") => {
    if (typeof value === "string" && value.startsWith("--") && name.endsWith("color")) {
      return getComputedStyle(document.documentElement).getPropertyValue(value).trim();
    }
    if (Array.isArray(value)) return value.map((part) => coloured(part, name));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, coloured(part, key)]));
  };

  const styled = (layout, width) => {
    const axis = { gridcolor: "--line", zerolinecolor: "--line", linecolor: "--line", automargin: true };
    const given = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, hovermode: "closest",
      font: { family: "system-ui, sans-serif", size: 12, color: "--ink" },
      hoverlabel: { bgcolor: "--card", bordercolor: "--line", font: { color: "--ink" }, align: "left" },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
      dragmode: touch ? false : "zoom",
      ...layout,
      margin: { l: 8, r: width < 500 ? 8 : 16, t: layout.showlegend === false ? 12 : 40, b: 8, ...layout.margin },
      xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    };
    return coloured(given);
  };

  const draw = (place) => {
    drawn.add(place);
    const { data, layout: { minwidth, ...layout } } = figures[Number(place.dataset.figure)];
    if (layout.height) place.style.height = `${layout.height}px`;
    if (minwidth) place.style.minWidth = `${minwidth}px`;  // scrolls where the window is narrower
    const options = { responsive: true, displayModeBar: false, showTips: false };
    Plotly.react(place, coloured(data), styled(layout, place.clientWidth), options);
  };

  // A figure is drawn when it comes near the window: a page of a thousand trials opens at once.
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && !drawn.has(target)) draw(target);
    }
  }, { rootMargin: "600px" });
  places.forEach((place) => seen.observe(place));
  dark.addEventListener("change", () => drawn.forEach(draw));
  addEventListener("beforeprint", () => places.filter((place) => !drawn.has(place)).forEach(draw));

  const sort = (table, column, header) => {
    const falling = header.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [row.cells[column].dataset.key ?? row.cells[column].textContent, row]);
    const number = (key) => (key.trim() === "" ? NaN : Number(key));
    const numeric = keyed.every(([key]) => key === "" || !Number.isNaN(number(key)));
    keyed.sort(([one], [other]) => {
      if (one === "" || other === "") return (one === "") - (other === "");  // what is not known comes last
      const order = numeric ? number(one) - number(other) : one.localeCompare(other, "en", { numeric: true });
      return falling ? -order : order;
    });
    body.append(...keyed.map(([, row]) => row));
  };
  document.querySelectorAll("table.sorts").forEach((table) => {
    table.querySelectorAll("th").forEach((header, column) => {
      header.querySelector("button").addEventListener("click", () => sort(table, column, header));
    });
  });
  document.querySelectorAll("button.all").forEach((button) => {
    button.addEventListener("click", () => {
      document.querySelectorAll("table.first").forEach((table) => table.classList.remove("first"));
      button.remove();
    });
  });
})();
