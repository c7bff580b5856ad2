-- One step of the writer, repeated every :pause seconds: mostly another delay of a flight, now and then a flight more or one
-- of the added ones less. Prints what it did.
with
  chance as materialized (
    select random() as p, 1 + floor(random() * :flights)::int8 as id, floor(random() * 21)::int - 5 as minutes
  ),
  delayed as (
    update flights f
    set dep_delay = coalesce(dep_delay, 0) + c.minutes, arr_delay = coalesce(arr_delay, 0) + c.minutes
    from chance c
    where f.id = (select id from chance where p < 0.94)
    returning 'update', f.*
  ),
  added as (
    insert into flights (year, month, day, sched_dep_time, sched_arr_time, carrier, flight, tailnum, origin, dest, distance,
      hour, minute, time_hour)
    select year, month, day, sched_dep_time, sched_arr_time, carrier, flight + 10000, tailnum, origin, dest, distance,
      hour, minute, time_hour
    from flights
    where id = (select id from chance where p >= 0.94 and p < 0.97)
    returning 'insert', flights.*
  ),
  dropped as (
    delete from flights
    where id = (select min(id) from flights where id > :flights and (select p from chance) >= 0.97)
    returning 'delete', flights.*
  ),
  done (operation) as (
    select * from delayed union all select * from added union all select * from dropped
  )
select operation, format('%s %s %s-%s of %s, delay %s', carrier, flight, origin, dest, time_hour::date, coalesce(dep_delay::text, '-'))
from done
\watch :pause
