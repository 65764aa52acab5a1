create table if not exists orders (id serial primary key, article text not null);
create table if not exists reports (month integer not null, amount integer not null);
insert into reports select month, 100 * month from generate_series(1, 12) as month;
create table if not exists summaries (month integer primary key, amount integer not null);
